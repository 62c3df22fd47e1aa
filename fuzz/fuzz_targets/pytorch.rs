#![no_main]
recant_fuzz::target!(pytorch);
