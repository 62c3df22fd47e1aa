#![no_main]
recant_fuzz::target!(read_picture, 4, 6000);
