//! Encoded images, PNG or JPEG: size and colour are looked at before anything is unpacked.

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader};

fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_, String> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    reader.into_decoder().map_err(|error| error.to_string())
}

/// Bytes to which so many unpack at most: deflate makes 1032 of one, a JPEG of one colour not quite as many.
pub(super) fn most(packed: usize) -> u64 {
    (packed as u64).saturating_mul(1032).saturating_add(1 << 16)
}

/// Height, width, and whether it has colour.
pub(crate) fn look(bytes: &[u8]) -> Result<(usize, usize, bool), String> {
    let decoder = decoder(bytes)?;
    let (width, height) = decoder.dimensions();
    let colour: ColorType = decoder.color_type();
    let pixels = 3 * u64::from(width) * u64::from(height);
    if pixels > most(bytes.len()) {
        let length = bytes.len();
        return Err(format!("it says that it has {height}x{width} pixels, more than its {length} bytes can hold"));
    }
    Ok((height as usize, width as usize, colour.has_color()))
}

/// Decodes into height x width x channels bytes, with 1 (grey) or 3 channels; alpha is dropped.
pub(crate) fn decode(bytes: &[u8], [channels, height, width]: [usize; 3], out: &mut [u8]) -> Result<(), String> {
    let decoder = decoder(bytes)?;
    let (found_width, found_height) = decoder.dimensions();
    if (found_height as usize, found_width as usize) != (height, width) {
        return Err(format!("it has {found_height}x{found_width} pixels, expected {height}x{width}"));
    }
    let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let pixels = if channels == 1 { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
    if pixels.len() != out.len() {
        return Err(format!("it has {} bytes of pixels, expected {}", pixels.len(), out.len()));
    }
    out.copy_from_slice(&pixels);
    Ok(())
}
