#![no_main]
recant_fuzz::target!(store, 1, 100);
