//! Plain loops compiled for wide vectors. Every lane computes what scalar code would, multiply-adds are not fused, so the bits
//! are the same on every processor.

/// What this processor can do.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub enum Level {
    Avx512,
    Avx2,
    Plain,
}

#[cfg(target_arch = "x86_64")]
impl Level {
    #[must_use]
    pub fn best() -> Self {
        // the answer is kept by the standard library
        if is_x86_feature_detected!("avx512f") {
            Level::Avx512
        } else if is_x86_feature_detected!("avx2") {
            Level::Avx2
        } else {
            Level::Plain
        }
    }
}

/// A function whose loops run in the widest vectors that there are.
macro_rules! wide {
    ($(#[$about:meta])* $visibility:vis fn $name:ident $(<$($number:ident: $bound:path),*>)? ($($argument:ident: $kind:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        $visibility fn $name $(<$($number: $bound),*>)? ($($argument: $kind),*) $(-> $result)? {
            #[inline(always)]
            fn body $(<$($number: $bound),*>)? ($($argument: $kind),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512 $(<$($number: $bound),*>)? ($($argument: $kind),*) $(-> $result)? {
                    body($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$($number: $bound),*>)? ($($argument: $kind),*) $(-> $result)? {
                    body($($argument),*)
                }
                #[expect(unsafe_code, reason = "a call of code for features that were found")]
                match $crate::wide::Level::best() {
                    // SAFETY: `best` found the features on this processor.
                    $crate::wide::Level::Avx512 => unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::wide::Level::Avx2 => unsafe { avx2($($argument),*) },
                    $crate::wide::Level::Plain => body($($argument),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($argument),*)
        }
    };
}
pub(crate) use wide;
