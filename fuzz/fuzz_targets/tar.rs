#![no_main]
recant_fuzz::target!(tar);
