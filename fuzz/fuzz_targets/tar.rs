#![no_main]
recant_fuzz::target!(tar, 2, 100);
