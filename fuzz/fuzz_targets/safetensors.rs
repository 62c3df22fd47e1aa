#![no_main]
recant_fuzz::target!(safetensors, 1, 200);
