//! Intel's tile registers (AMX): eight of 16 rows x 64 bytes. One instruction adds the product of 16 x 32 and 32 x 16 bf16
//! to 16 x 16 f32: in one clock sixteen times what two AVX-512 multiply-adds do. Rust has no stable intrinsics for them,
//! so the loop is assembly, whole, for the compiler knows nothing of what the registers hold.
//!
//! Source: Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on AMX: four sums of 16 x 16 share two
//! tiles of each factor, so that each tile that is loaded is used twice.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Rows of a tile, and f32 columns of one.
pub(super) const SIDE: usize = 16;
/// bf16 that a row of a tile holds.
pub(super) const DEEP: usize = 32;

/// Whether processor and system have the registers and let this process use them.
pub(super) fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILE: u32 = 1 << 24;
        let tiles = __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE;
        // what the loops around them need
        let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        tiles && vectors && is_x86_feature_detected!("avx512bf16") && permitted()
    })
}

/// Asks the system for the registers' state, which is too large to be saved for everybody.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST: libc::c_int = 0x1023; // ARCH_REQ_XCOMP_PERM
    const STATE: libc::c_ulong = 18; // XFEATURE_XTILEDATA
    // SAFETY: the call takes two numbers; a system that does not know it says so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, STATE) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The sizes of the registers on this thread, until it is dropped.
pub(super) struct Sizes(());

impl Sizes {
    /// Rows of the two tiles of sums and of the left factor, at most 16 each; bf16 in a row of the left factor, at most 32,
    /// an even number.
    pub(super) fn new(rows: [usize; 2], deep: usize) -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: [u8; 16],
            /// Bytes of a row.
            columns: [u16; 16],
            rows: [u8; 16],
        }
        assert!(available() && rows.iter().all(|&rows| rows <= SIDE) && deep <= DEEP && deep.is_multiple_of(2));
        let mut config = Config { palette: [0; 16], columns: [0; 16], rows: [0; 16] };
        config.palette[0] = 1;
        // a tile without rows is configured like a full one and never used
        let [first, second] = rows.map(|rows| if rows == 0 { SIDE } else { rows });
        let row = 2 * deep;
        let sizes = [
            (first, 64),
            (first, 64),
            (second, 64),
            (second, 64),
            (first, row),
            (second, row),
            (deep / 2, 64),
            (deep / 2, 64),
        ];
        for (index, (rows, columns)) in sizes.into_iter().enumerate() {
            (config.rows[index], config.columns[index]) = (rows as u8, columns as u16);
        }
        // SAFETY: the registers are there, by `available`; the configuration is 64 bytes that say sizes which they have.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Sizes {
    fn drop(&mut self) {
        // SAFETY: the registers are there, or there were no sizes.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Two factors of a sum: rows of bf16, and as `multiply` says.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Term {
    pub(super) left: *const u16,
    pub(super) right: *const u32,
}

/// Where the factors of one sum of products lie. Distances are in bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Product {
    /// Added to the places of every term.
    pub(super) left_shift: usize,
    pub(super) right_shift: usize,
    /// Steps along a term.
    pub(super) steps: usize,
    pub(super) left_row: usize,
    pub(super) left_step: usize,
    /// From the first tile of rows to the second.
    pub(super) left_second: usize,
    pub(super) right_step: usize,
    /// From the first tile of columns to the second.
    pub(super) right_second: usize,
    pub(super) sum: *mut f32,
    pub(super) sum_row: usize,
    /// From the sums of the first tile of rows to those of the second; the second tile of columns follows the first.
    pub(super) sum_second: usize,
    /// Whether to add to what is there.
    pub(super) keep: usize,
}

macro_rules! multiply {
    ($name:ident, zero $zero:literal, load $load:literal, step $step:literal, store $store:literal) => {
        unsafe fn $name(product: &Product, terms: &[Term]) {
            let range = terms.as_ptr_range();
            // SAFETY: the caller's promise is that of `multiply`.
            unsafe {
                asm!(
                    "mov {a}, [{p} + {SUM}]",
                    "mov {k}, [{p} + {SUM_ROW}]",
                    "mov {a2}, {a}",
                    "add {a2}, [{p} + {SUM_SECOND}]",
                    "cmp qword ptr [{p} + {KEEP}], 0",
                    "jne 2f",
                    $zero,
                    "jmp 3f",
                    "2:",
                    $load,
                    "3:",
                    "cmp {t}, {end}",
                    "je 6f",
                    "4:",
                    "mov {a}, [{t}]",
                    "add {a}, [{p} + {LEFT_SHIFT}]",
                    "mov {b}, [{t} + 8]",
                    "add {b}, [{p} + {RIGHT_SHIFT}]",
                    "mov {a2}, {a}",
                    "add {a2}, [{p} + {LEFT_SECOND}]",
                    "mov {b2}, {b}",
                    "add {b2}, [{p} + {RIGHT_SECOND}]",
                    "mov {k}, [{p} + {STEPS}]",
                    "5:",
                    $step,
                    "add {a}, [{p} + {LEFT_STEP}]",
                    "add {a2}, [{p} + {LEFT_STEP}]",
                    "add {b}, [{p} + {RIGHT_STEP}]",
                    "add {b2}, [{p} + {RIGHT_STEP}]",
                    "dec {k}",
                    "jnz 5b",
                    "add {t}, 16",
                    "cmp {t}, {end}",
                    "jne 4b",
                    "6:",
                    "mov {a}, [{p} + {SUM}]",
                    "mov {k}, [{p} + {SUM_ROW}]",
                    "mov {a2}, {a}",
                    "add {a2}, [{p} + {SUM_SECOND}]",
                    $store,
                    p = in(reg) product,
                    t = inout(reg) range.start => _,
                    end = in(reg) range.end,
                    row = in(reg) product.left_row,
                    line = in(reg) 64_usize,
                    a = out(reg) _,
                    a2 = out(reg) _,
                    b = out(reg) _,
                    b2 = out(reg) _,
                    k = out(reg) _,
                    SUM = const std::mem::offset_of!(Product, sum),
                    SUM_ROW = const std::mem::offset_of!(Product, sum_row),
                    SUM_SECOND = const std::mem::offset_of!(Product, sum_second),
                    KEEP = const std::mem::offset_of!(Product, keep),
                    LEFT_SHIFT = const std::mem::offset_of!(Product, left_shift),
                    RIGHT_SHIFT = const std::mem::offset_of!(Product, right_shift),
                    LEFT_SECOND = const std::mem::offset_of!(Product, left_second),
                    RIGHT_SECOND = const std::mem::offset_of!(Product, right_second),
                    LEFT_STEP = const std::mem::offset_of!(Product, left_step),
                    RIGHT_STEP = const std::mem::offset_of!(Product, right_step),
                    STEPS = const std::mem::offset_of!(Product, steps),
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply!(
    two_by_two,
    zero "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3",
    load "tileloadd tmm0, [{a} + {k}]\ntileloadd tmm1, [{a} + {k} + 64]\ntileloadd tmm2, [{a2} + {k}]\ntileloadd tmm3, [{a2} + {k} + 64]",
    step "tileloadd tmm4, [{a} + {row}]\ntileloadd tmm6, [{b} + {line}]\ntdpbf16ps tmm0, tmm4, tmm6\ntileloadd tmm7, [{b2} + {line}]\ntdpbf16ps tmm1, tmm4, tmm7\ntileloadd tmm5, [{a2} + {row}]\ntdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
    store "tilestored [{a} + {k}], tmm0\ntilestored [{a} + {k} + 64], tmm1\ntilestored [{a2} + {k}], tmm2\ntilestored [{a2} + {k} + 64], tmm3"
);
multiply!(
    one_by_two,
    zero "tilezero tmm0\ntilezero tmm1",
    load "tileloadd tmm0, [{a} + {k}]\ntileloadd tmm1, [{a} + {k} + 64]",
    step "tileloadd tmm4, [{a} + {row}]\ntileloadd tmm6, [{b} + {line}]\ntdpbf16ps tmm0, tmm4, tmm6\ntileloadd tmm7, [{b2} + {line}]\ntdpbf16ps tmm1, tmm4, tmm7",
    store "tilestored [{a} + {k}], tmm0\ntilestored [{a} + {k} + 64], tmm1"
);
multiply!(
    two_by_one,
    zero "tilezero tmm0\ntilezero tmm2",
    load "tileloadd tmm0, [{a} + {k}]\ntileloadd tmm2, [{a2} + {k}]",
    step "tileloadd tmm4, [{a} + {row}]\ntileloadd tmm6, [{b} + {line}]\ntdpbf16ps tmm0, tmm4, tmm6\ntileloadd tmm5, [{a2} + {row}]\ntdpbf16ps tmm2, tmm5, tmm6",
    store "tilestored [{a} + {k}], tmm0\ntilestored [{a2} + {k}], tmm2"
);
multiply!(
    one_by_one,
    zero "tilezero tmm0",
    load "tileloadd tmm0, [{a} + {k}]",
    step "tileloadd tmm4, [{a} + {row}]\ntileloadd tmm6, [{b} + {line}]\ntdpbf16ps tmm0, tmm4, tmm6",
    store "tilestored [{a} + {k}], tmm0"
);

/// `sum[r][c] (+)= sum over terms and d of left[r][d] right[d][c]`, for one or two tiles of rows and of columns. The right
/// factor lies as `right[d / 2][c]`, of two neighbours d the first in the lower half; the elements of a term as
/// `steps` tiles of it.
///
/// # Safety
/// All tiles of all terms and steps, with the sizes that this thread's registers have now, lie within their buffers; the
/// sums are this task's own.
pub(super) unsafe fn multiply(_: &Sizes, [rows, columns]: [usize; 2], product: &Product, terms: &[Term]) {
    assert!(product.steps > 0, "a term has a step");
    // SAFETY: the caller's promise.
    unsafe {
        match (rows, columns) {
            (1, 1) => one_by_one(product, terms),
            (1, _) => one_by_two(product, terms),
            (_, 1) => two_by_one(product, terms),
            _ => two_by_two(product, terms),
        }
    }
}
