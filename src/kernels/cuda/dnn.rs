//! Convolutions by cuDNN, in NHWC. Of its ways those are taken that give the same bits each time: implicit products with the
//! indices worked out before, and number 1 of both ways back; where cuDNN has no such way for a shape, its own first choice
//! among those that repeat their bits.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::Result;
use cudarc::cudnn::{result, sys};
use cudarc::driver::CudaStream;

use super::device::wrong;
use super::machine::{Convolution, Makes};

/// A handle, and what was worked out for the shapes seen so far.
pub(super) struct Dnn {
    handle: sys::cudnnHandle_t,
    stream: Arc<CudaStream>,
    plans: HashMap<(Convolution, Makes), Plan>,
}

// SAFETY: the handle and its descriptors may be used by any thread, one at a time; whoever has them holds a lock.
unsafe impl Send for Dnn {}

struct Plan {
    x: sys::cudnnTensorDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    weights: sys::cudnnFilterDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
    way: Way,
    workspace: usize,
}

#[derive(Clone, Copy)]
enum Way {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weights(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// Asks cuDNN for its offers, best first, and gives the first one that works and repeats its bits. For each of the three
/// results cuDNN has a function and a type of its own.
macro_rules! first_offer {
    ($way:path, $offer:ty, $ask:path, $($arg:expr),*) => {{
        const MANY: usize = 8;
        // room for as many offers as are asked for; they are plain numbers
        let mut offers: [$offer; MANY] = std::mem::zeroed();
        let mut count = 0;
        $ask($($arg,)* MANY as i32, &raw mut count, offers.as_mut_ptr()).map_err(wrong)?;
        let works = |offer: &&$offer| {
            offer.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                && offer.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
        };
        let offer = offers[..count as usize].iter().find(works);
        Ok($way(offer.ok_or_else(|| wrong("cuDNN has no way of doing this convolution that repeats its bits"))?.algo))
    }};
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else's. What cannot be destroyed is left.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_filter_descriptor(self.weights);
            let _ = result::destroy_convolution_descriptor(self.convolution);
        }
    }
}

impl Plan {
    fn new(handle: sys::cudnnHandle_t, shape: Convolution, makes: Makes) -> Result<Self> {
        let Convolution { batch, x, y, window, half, exact } = shape;
        let kind =
            if half { sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16 } else { sys::cudnnDataType_t::CUDNN_DATA_FLOAT };
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let four = |[channels, height, width]: [usize; 3]| [batch, channels, height, width].map(|size| size as i32);
        let [kernel, stride, padding] = [window.kernel, window.stride, window.padding].map(|size| size as i32);
        let math = match (half, exact) {
            (true, _) => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            (false, true) => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            (false, false) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        };
        let mut plan = Self {
            x: result::create_tensor_descriptor().map_err(wrong)?,
            y: result::create_tensor_descriptor().map_err(wrong)?,
            weights: result::create_filter_descriptor().map_err(wrong)?,
            convolution: result::create_convolution_descriptor().map_err(wrong)?,
            way: Way::Forward(sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM),
            workspace: 0,
        };
        // SAFETY: fresh descriptors, and plain numbers.
        unsafe {
            result::set_tensor4d_descriptor(plan.x, format, kind, four(x)).map_err(wrong)?;
            result::set_tensor4d_descriptor(plan.y, format, kind, four(y)).map_err(wrong)?;
            let sides = [y[0] as i32, x[0] as i32, kernel, kernel];
            result::set_filter4d_descriptor(plan.weights, kind, format, sides).map_err(wrong)?;
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
            let convolution = plan.convolution;
            result::set_convolution2d_descriptor(convolution, padding, padding, stride, stride, 1, 1, mode, float)
                .map_err(wrong)?;
            result::set_convolution_math_type(convolution, math).map_err(wrong)?;
        }
        (plan.way, plan.workspace) = plan.chosen(handle, makes)?;
        Ok(plan)
    }

    /// The way that repeats its bits, and the bytes that it needs.
    fn chosen(&self, handle: sys::cudnnHandle_t, makes: Makes) -> Result<(Way, usize)> {
        let first = match makes {
            Makes::Y => Way::Forward(sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM),
            Makes::X => Way::Data(sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1),
            Makes::Weights => Way::Weights(sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1),
        };
        if let Ok(bytes) = self.needs(handle, first) {
            return Ok((first, bytes));
        }
        let way = self.offered(handle, makes)?;
        Ok((way, self.needs(handle, way)?))
    }

    fn needs(&self, handle: sys::cudnnHandle_t, way: Way) -> Result<usize> {
        let Self { x, y, weights, convolution, .. } = *self;
        // SAFETY: descriptors of this plan.
        unsafe {
            match way {
                Way::Forward(way) => {
                    result::get_convolution_forward_workspace_size(handle, x, weights, convolution, y, way)
                }
                Way::Data(way) => {
                    result::get_convolution_backward_data_workspace_size(handle, weights, y, convolution, x, way)
                }
                Way::Weights(way) => {
                    result::get_convolution_backward_filter_workspace_size(handle, x, y, convolution, weights, way)
                }
            }
        }
        .map_err(wrong)
    }

    /// The first of cuDNN's offers that repeats its bits.
    fn offered(&self, handle: sys::cudnnHandle_t, makes: Makes) -> Result<Way> {
        let Self { x, y, weights, convolution, .. } = *self;
        // SAFETY: descriptors of this plan.
        unsafe {
            match makes {
                Makes::Y => first_offer!(
                    Way::Forward,
                    sys::cudnnConvolutionFwdAlgoPerf_t,
                    result::get_convolution_forward_algorithm,
                    handle,
                    x,
                    weights,
                    convolution,
                    y
                ),
                Makes::X => first_offer!(
                    Way::Data,
                    sys::cudnnConvolutionBwdDataAlgoPerf_t,
                    result::get_convolution_backward_data_algorithm,
                    handle,
                    weights,
                    y,
                    convolution,
                    x
                ),
                Makes::Weights => first_offer!(
                    Way::Weights,
                    sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                    result::get_convolution_backward_filter_algorithm,
                    handle,
                    x,
                    y,
                    convolution,
                    weights
                ),
            }
        }
    }
}

impl Dnn {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().map_err(wrong)?;
        let handle = result::create_handle().map_err(wrong)?;
        // SAFETY: a fresh handle and a living stream, which this keeps alive.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(wrong)?;
        Ok(Self { handle, stream, plans: HashMap::new() })
    }

    fn plan(&mut self, shape: Convolution, makes: Makes) -> Result<&Plan> {
        self.stream.context().bind_to_thread().map_err(wrong)?;
        match self.plans.entry((shape, makes)) {
            Entry::Occupied(plan) => Ok(plan.into_mut()),
            Entry::Vacant(place) => {
                let plan = Plan::new(self.handle, shape, makes);
                Ok(place.insert(plan.map_err(|error| wrong(format!("{shape:?}: {error}")))?))
            }
        }
    }

    /// Bytes that the way needs beside its result.
    pub(super) fn room(&mut self, shape: Convolution, makes: Makes) -> Result<usize> {
        Ok(self.plan(shape, makes)?.workspace)
    }

    pub(super) fn convolve(
        &mut self,
        room: u64,
        shape: Convolution,
        makes: Makes,
        at: [u64; 3],
        add: bool,
    ) -> Result<()> {
        let handle = self.handle;
        let plan = self.plan(shape, makes)?;
        let (room, bytes) = (room as *mut c_void, plan.workspace);
        let Plan { x, y, weights, convolution, way, .. } = *plan;
        let [x_at, weights_at, y_at] = at.map(|at| at as *mut c_void);
        let (one, old) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        let (one, old) = ((&raw const one).cast(), (&raw const old).cast());
        // SAFETY: descriptors of this plan, and addresses of memory of their sizes, which the passes hold.
        unsafe {
            match way {
                Way::Forward(way) => result::convolution_forward(
                    handle,
                    one,
                    x,
                    x_at,
                    weights,
                    weights_at,
                    convolution,
                    way,
                    room,
                    bytes,
                    old,
                    y,
                    y_at,
                ),
                Way::Data(way) => result::convolution_backward_data(
                    handle,
                    one,
                    weights,
                    weights_at,
                    y,
                    y_at,
                    convolution,
                    way,
                    room,
                    bytes,
                    old,
                    x,
                    x_at,
                ),
                Way::Weights(way) => result::convolution_backward_filter(
                    handle,
                    one,
                    x,
                    x_at,
                    y,
                    y_at,
                    convolution,
                    way,
                    room,
                    bytes,
                    old,
                    weights,
                    weights_at,
                ),
            }
        }
        .map_err(|error| wrong(format!("{shape:?} {makes:?}: {error}")))
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made by `new`, and nobody uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}
