#![no_main]
recant_fuzz::target!(cifar_binary);
