#![no_main]
recant_fuzz::target!(read_indices, 1, 50);
