//! Seeded chance: the same seed gives the same run, on every machine and in every release.
//!
//! A crate's generator may change its stream with a version, and with it every scenario's figures.
//! SplitMix64 is ten lines and fixed for ever. Called by `demo` (jitter, words, workloads) and by `simulate`
//! (workloads, simulated upstreams); nothing that decides may draw from it.

/// Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A stream of its own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        unit(self.next_u64())
    }

    /// Exponential with this mean: the gap between two arrivals of a Poisson process.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        // 1 - u is never 0, so the logarithm is finite.
        -(1.0 - self.uniform()).ln() * mean
    }

    /// Standard normal (Box-Muller; the second value of the pair is not kept, so the stream stays simple).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Lognormal with this median and this σ of the logarithm.
    pub fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// Gamma with this mean and this coefficient of variation (Marsaglia and Tsang 2000); the mean itself
    /// where there is no variation.
    pub fn gamma(&mut self, mean: f64, cv: f64) -> f64 {
        if cv.is_nan() || cv <= 0.0 {
            return mean;
        }
        let shape = cv.powi(-2);
        // Their method wants a shape of at least 1: a smaller one is a larger one's draw times u^(1/shape).
        let (raised, boost) =
            if shape < 1.0 { (shape + 1.0, (1.0 - self.uniform()).powf(1.0 / shape)) } else { (shape, 1.0) };
        let d = raised - 1.0 / 3.0;
        let c = (9.0 * d).sqrt().recip();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return mean * boost * d * v / shape;
            }
        }
    }
}

/// A number that depends on all three and on nothing else: chance that does not care who asked first.
#[must_use]
pub const fn hash(seed: u64, request: u64, step: u64) -> u64 {
    let mut a = SplitMix64::new(seed);
    let mut b = SplitMix64::new(a.next_u64() ^ request);
    SplitMix64::new(b.next_u64() ^ step).next_u64()
}

/// The top 53 bits as a fraction in `[0, 1)`.
#[must_use]
pub const fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_splitmix64s() {
        // The reference implementation's first outputs for seed 1234567.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
        assert_eq!(rng.next_u64(), 9_817_491_932_198_370_423);
    }

    #[test]
    fn the_distributions_have_their_moments() {
        let mut rng = SplitMix64::new(7);
        let n = 100_000;
        let mean = (0..n).map(|_| rng.exponential(2.0)).sum::<f64>() / f64::from(n);
        assert!((mean - 2.0).abs() < 0.03, "{mean}");
        let draws: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn gamma_has_its_mean_and_its_spread() {
        for cv in [0.25, 0.64, 1.0, 2.0] {
            let mut rng = SplitMix64::new(11);
            let draws: Vec<f64> = (0..200_000).map(|_| rng.gamma(3.0, cv)).collect();
            let n = draws.len() as f64;
            let mean = draws.iter().sum::<f64>() / n;
            let sd = (draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!((mean - 3.0).abs() < 0.05 && (sd / mean - cv).abs() < 0.03 * cv, "{cv}: {mean} {sd}");
        }
        assert_eq!(SplitMix64::new(1).gamma(3.0, 0.0), 3.0);
    }
}
