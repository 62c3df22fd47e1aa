#![no_main]
recant_fuzz::target!(parquet, 4, 1200, guarded);
