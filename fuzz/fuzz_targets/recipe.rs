#![no_main]
recant_fuzz::target!(recipe, 600, 1000);
