#![no_main]
recant_fuzz::target!(artifact, 2, 200);
