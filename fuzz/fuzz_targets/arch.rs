#![no_main]
recant_fuzz::target!(arch, 16, 200);
