#![no_main]
recant_fuzz::target!(arch);
