#![no_main]
recant_fuzz::target!(pytorch, 2, 600);
