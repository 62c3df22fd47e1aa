#![no_main]
recant_fuzz::target!(cifar_binary, 2, 100);
