#![no_main]
recant_fuzz::target!(table, 4, 1000);
