//! All randomness: the counter-based generator Philox4x32-10 (Salmon et al., SC 2011), keyed by a seed and forked by
//! purpose. A draw is a function of (seed, purposes, position) alone, so it does not depend on threads, on the order of
//! stages or on what was drawn before, and a training loop that resumes draws what it would have drawn.

use rayon::prelude::*;

/// A stream of draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    key: [u32; 2],
    stream: u64,
    /// The next 32-bit word of the stream.
    position: u64,
}

impl Rng {
    /// The root of all draws of a seed. Draw from its forks, not from it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32], stream: 0, position: 0 }
    }

    /// An independent stream for a purpose: "init", "shuffle", a parameter's name.
    #[must_use]
    pub fn fork(&self, purpose: &str) -> Self {
        self.derive(purpose.as_bytes())
    }

    /// An independent stream for a number: an epoch, a sample.
    #[must_use]
    pub fn at(&self, index: u64) -> Self {
        let mut bytes = [0; 9];
        bytes[0] = 0xff; // no UTF-8 text begins so: never equal to a fork by purpose
        bytes[1..].copy_from_slice(&index.to_le_bytes());
        self.derive(&bytes)
    }

    fn derive(&self, label: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.key[0].to_le_bytes()).update(&self.key[1].to_le_bytes());
        hasher.update(&self.stream.to_le_bytes()).update(label);
        let hash = hasher.finalize();
        let word = |i: usize| u32::from_le_bytes(hash.as_bytes()[4 * i..4 * i + 4].try_into().unwrap_or_default());
        let stream = u64::from(word(2)) | u64::from(word(3)) << 32;
        Self { key: [word(0), word(1)], stream, position: 0 }
    }

    /// Goes on at the given word of the stream: fixed shares of draws for each sample (`rng.seek(sample * 8)`).
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    pub fn next_u32(&mut self) -> u32 {
        let word = self.block(self.position / 4)[(self.position % 4) as usize];
        self.position += 1;
        word
    }

    /// Four words of the stream.
    fn block(&self, block: u64) -> [u32; 4] {
        let counter = [block as u32, (block >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox(counter, self.key)
    }

    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    pub fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// Uniform in 0..bound, without bias (Lemire's method with rejection); 0 where the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }

    /// A standard normal draw (Box and Muller), from exactly two words.
    pub fn normal(&mut self) -> f32 {
        let radius = self.next_u32();
        normal([radius, self.next_u32()])
    }

    /// So many of them, the same as one by one, drawn on all cores.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        const CHUNK: usize = 4096;
        let mut draws = vec![0.0; count];
        if !self.position.is_multiple_of(2) {
            draws.fill_with(|| self.normal());
            return draws;
        }
        let first = self.position / 2;
        let fill = |(chunk, draws): (usize, &mut [f32])| {
            let start = first + (chunk * CHUNK) as u64;
            let mut block = self.block(start / 2);
            for (place, draw) in (start..).zip(draws) {
                if place.is_multiple_of(2) {
                    block = self.block(place / 2);
                }
                let [a, b, c, d] = block;
                *draw = normal(if place.is_multiple_of(2) { [a, b] } else { [c, d] });
            }
        };
        if count <= CHUNK {
            fill((0, &mut draws));
        } else {
            draws.par_chunks_mut(CHUNK).enumerate().for_each(fill);
        }
        self.position += 2 * count as u64;
        draws
    }

    /// A fair shuffle in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

fn normal([radius, angle]: [u32; 2]) -> f32 {
    let radius = f64::from(radius) + 1.0;
    let angle = f64::from(angle) / 4_294_967_296.0 * std::f64::consts::TAU;
    ((-2.0 * (radius / 4_294_967_297.0).ln()).sqrt() * angle.cos()) as f32
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with Random123 (philox4x32, 10 rounds).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn many_normal_draws_are_those_drawn_one_by_one() {
        for (skipped, count) in [(0, 1), (0, 10_001), (2, 4096), (6, 9000), (3, 50)] {
            let mut one = Rng::new(5).fork("noise");
            one.seek(skipped);
            let mut many = one.clone();
            let drawn: Vec<f32> = (0..count).map(|_| one.normal()).collect();
            assert_eq!(many.normals(count), drawn, "{count} from {skipped}");
            assert_eq!(many, one);
        }
    }

    #[test]
    fn forks_differ_and_repeat() {
        let root = Rng::new(7);
        let draw = |mut rng: Rng| rng.next_u64();
        assert_eq!(draw(root.fork("init")), draw(root.fork("init")));
        assert_ne!(draw(root.fork("init")), draw(root.fork("shuffle")));
        assert_ne!(draw(root.at(0)), draw(root.at(1)));
        assert_ne!(draw(Rng::new(1).fork("init")), draw(Rng::new(2).fork("init")));
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut rng = Rng::new(1).fork("normal");
        let draws: Vec<f64> = (0..100_000).map(|_| f64::from(rng.normal())).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_fair() {
        let mut first = [0_u32; 5];
        for seed in 0..5_000 {
            let mut items: Vec<usize> = (0..5).collect();
            Rng::new(seed).fork("shuffle").shuffle(&mut items);
            first[items[0]] += 1;
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3, 4]);
        }
        assert!(first.iter().all(|&n| (850..1150).contains(&n)), "{first:?}");
    }
}
