//! RGB and planar Y'CbCr with chroma of half the width and height, as H.264 has it (ITU-T H.273, equations 14 to 46).

use super::bad;
use crate::error::Result;

/// How Y'CbCr stands for RGB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Colour {
    red: f32,
    blue: f32,
    full_range: bool,
}

impl Colour {
    /// BT.709 in limited range, which is what encoders write here.
    pub const BT709: Self = Self { red: 0.2126, blue: 0.0722, full_range: false };

    /// The colours of H.273's number of matrix coefficients.
    pub fn from_matrix(matrix: u32, full_range: bool) -> Result<Self> {
        let (red, blue) = match matrix {
            1 => (0.2126, 0.0722),
            4 => (0.30, 0.11),
            5 | 6 => (0.299, 0.114),
            7 => (0.212, 0.087),
            9 => (0.2627, 0.0593),
            _ => return Err(bad(format!("There are no colours of matrix coefficients {matrix} here"))),
        };
        Ok(Self { red, blue, full_range })
    }

    fn green(&self) -> f32 {
        1.0 - self.red - self.blue
    }

    /// Black's luma, and what a difference of 1 is in luma and in chroma.
    fn scales(&self) -> (f32, f32, f32) {
        if self.full_range { (0.0, 255.0, 255.0) } else { (16.0, 219.0, 224.0) }
    }
}

/// Planes of one picture: luma, and chroma of half its sides.
pub struct Planes {
    /// Luma.
    pub y: Vec<u8>,
    /// Blue chroma.
    pub u: Vec<u8>,
    /// Red chroma.
    pub v: Vec<u8>,
}

impl Planes {
    /// Planes of a picture of even sides.
    pub fn new(width: usize, height: usize) -> Self {
        let quarter = width * height / 4;
        Self { y: vec![0; width * height], u: vec![0; quarter], v: vec![0; quarter] }
    }

    /// Converts RGB: chroma is the mean of four pixels.
    pub fn read_rgb(&mut self, rgb: &[u8], width: usize, colour: Colour) {
        let (black, luma, chroma) = colour.scales();
        let y_of = [colour.red, colour.green(), colour.blue].map(|weight| weight * luma / 255.0);
        // Cb = (B - Y') / (2 (1 - blue)), Cr = (R - Y') / (2 (1 - red)), here of sums of four pixels.
        let u_scale = chroma / (255.0 * 4.0 * 2.0 * (1.0 - colour.blue));
        let v_scale = chroma / (255.0 * 4.0 * 2.0 * (1.0 - colour.red));
        let u_of = [-colour.red, -colour.green(), 1.0 - colour.blue].map(|weight| weight * u_scale);
        let v_of = [1.0 - colour.red, -colour.green(), -colour.blue].map(|weight| weight * v_scale);
        for (pixel, y) in rgb.chunks_exact(3).zip(&mut self.y) {
            let [r, g, b] = [pixel[0] as f32, pixel[1] as f32, pixel[2] as f32];
            *y = round(black + r * y_of[0] + g * y_of[1] + b * y_of[2]);
        }
        let half = width / 2;
        let chroma_rows = self.u.chunks_exact_mut(half).zip(self.v.chunks_exact_mut(half));
        for (rows, (u_row, v_row)) in rgb.chunks_exact(2 * 3 * width).zip(chroma_rows) {
            let (above, below) = rows.split_at(3 * width);
            let pairs = above.chunks_exact(6).zip(below.chunks_exact(6));
            for ((a, b), (u, v)) in pairs.zip(u_row.iter_mut().zip(v_row)) {
                let sum = |c: usize| (a[c] as u16 + a[c + 3] as u16 + b[c] as u16 + b[c + 3] as u16) as f32;
                let [r, g, b] = [sum(0), sum(1), sum(2)];
                *u = round(128.0 + r * u_of[0] + g * u_of[1] + b * u_of[2]);
                *v = round(128.0 + r * v_of[0] + g * v_of[1] + b * v_of[2]);
            }
        }
    }
}

/// Planes of a decoded picture, whose rows may be padded.
pub struct Picture<'a> {
    /// Luma, blue chroma, red chroma.
    pub planes: [&'a [u8]; 3],
    /// Bytes from row to row of luma and of chroma.
    pub strides: [usize; 2],
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl Picture<'_> {
    /// Appends the picture as RGB; chroma is interpolated between the middles of the four pixels that each stands for.
    pub fn write_rgb(&self, out: &mut Vec<u8>, colour: Colour) {
        let (black, luma, chroma) = colour.scales();
        let gain = 255.0 / luma;
        let chroma = 255.0 / chroma * 2.0;
        let r_of_v = (1.0 - colour.red) * chroma;
        let b_of_u = (1.0 - colour.blue) * chroma;
        let g_of_u = -colour.blue / colour.green() * b_of_u;
        let g_of_v = -colour.red / colour.green() * r_of_v;
        let mut rows = [vec![0.0; self.width], vec![0.0; self.width]];
        let start = out.len();
        out.resize(start + self.width * self.height * 3, 0);
        for (y, rgb) in out[start..].chunks_exact_mut(3 * self.width).enumerate() {
            for (plane, row) in self.planes[1..].iter().zip(&mut rows) {
                self.interpolate(plane, y, row);
            }
            let luma = &self.planes[0][y * self.strides[0]..][..self.width];
            let [u_row, v_row] = &rows;
            for ((rgb, &y), (&u, &v)) in rgb.chunks_exact_mut(3).zip(luma).zip(u_row.iter().zip(v_row)) {
                let y = (y as f32 - black) * gain;
                rgb[0] = round(y + r_of_v * v);
                rgb[1] = round(y + g_of_u * u + g_of_v * v);
                rgb[2] = round(y + b_of_u * u);
            }
        }
    }

    /// Chroma at each pixel of a row: the nearest value counts three times what the next one does, both ways.
    fn interpolate(&self, plane: &[u8], y: usize, out: &mut [f32]) {
        let (width, height) = (self.width.div_ceil(2), self.height.div_ceil(2));
        let beside =
            |i: usize, end: usize| (if i % 2 == 1 { i / 2 + 1 } else { (i / 2).saturating_sub(1) }).min(end - 1);
        let near = &plane[y / 2 * self.strides[1]..][..width];
        let next = &plane[beside(y, height) * self.strides[1]..][..width];
        let at = |x: usize| 3 * near[x] as u16 + next[x] as u16;
        for (x, value) in out.iter_mut().enumerate() {
            *value = (3 * at(x / 2) + at(beside(x, width))) as f32 / 16.0 - 128.0;
        }
    }
}

/// To the nearest byte.
fn round(value: f32) -> u8 {
    (value + 0.5) as u8
}
