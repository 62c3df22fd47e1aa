#![no_main]
recant_fuzz::target!(pickle);
