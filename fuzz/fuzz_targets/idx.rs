#![no_main]
recant_fuzz::target!(read_idx, 2, 1200);
