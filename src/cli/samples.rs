//! `recant samples`: images of a stage, to look at.

use std::io::Write;
use std::path::Path;

use image::{Rgb, RgbImage};

use super::{Common, made, say};
use crate::artifact::Artifact;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::output::write;

/// Pictures a row, and in all.
const ROW: usize = 10;
const ALL: usize = 100;
/// A picture is drawn this wide at least.
const SIDE: usize = 48;

/// Writes the first training images of a stage, ten a row, as a PNG file.
pub(super) fn samples(path: &Path, stage: &str, output: &Path, common: &Common) -> Result<u8> {
    let Artifact::Images(images) = made(path, stage, Kind::Images, common)? else {
        return Err(Error::invalid(format!("`{stage}` holds no images")));
    };
    let [channels, height, width] = images.size;
    let zoom = SIDE.div_ceil(width.max(1)).max(1);
    let count = images.train.len().min(ALL);
    let (across, down) = (count.min(ROW), count.div_ceil(ROW));
    let pixel = |x: usize, y: usize| -> Rgb<u8> {
        let (column, row) = (x / (zoom * width + 1), y / (zoom * height + 1));
        let (x, y) = (x % (zoom * width + 1) / zoom, y % (zoom * height + 1) / zoom);
        let number = row * ROW + column;
        if number >= count || x >= width || y >= height {
            return Rgb([255; 3]);
        }
        let at = number * images.image_len() + (y * width + x) * channels;
        Rgb(std::array::from_fn(|c| images.train.pixels[at + c.min(channels - 1)]))
    };
    let sizes = (across * (zoom * width + 1), down * (zoom * height + 1));
    let grid = RgbImage::from_fn(sizes.0 as u32, sizes.1 as u32, |x, y| pixel(x as usize, y as usize));
    let mut bytes = Vec::new();
    grid.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .map_err(|error| Error::invalid(format!("the picture could not be made: {error}")))?;
    write(output, |file| file.write_all(&bytes).map_err(Error::io("write", output)))?;
    say(&format!("{count} of {} images in {}", images.train.len(), output.display()));
    Ok(0)
}
