#![no_main]
recant_fuzz::target!(pickle, 1, 200);
