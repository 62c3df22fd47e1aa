#![no_main]
recant_fuzz::target!(parquet, guarded);
