#![no_main]
recant_fuzz::target!(cifar_python, 2, 200);
