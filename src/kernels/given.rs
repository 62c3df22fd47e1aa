//! Operations whose result is there before candle hears of them: what makes it gives more than one tensor, or the gradients
//! with it. Candle keeps them in its graph, for the way back.

use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor,
};

/// From the inputs and the gradient of the result to those of the inputs; none where nothing asks for it.
type Back = Box<dyn Fn(&[&Tensor], &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

struct Given {
    name: &'static str,
    /// Until candle takes it.
    made: Mutex<Option<Storage>>,
    shape: Shape,
    back: Back,
}

/// What was made of one to three inputs, on their device; tracked where one of them is.
pub fn given(
    name: &'static str,
    inputs: &[&Tensor],
    made: Storage,
    shape: impl Into<Shape>,
    back: impl Fn(&[&Tensor], &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync + 'static,
) -> Result<Tensor> {
    let given = Given { name, made: Mutex::new(Some(made)), shape: shape.into(), back: Box::new(back) };
    match inputs {
        [a] => a.apply_op1(given),
        [a, b] => a.apply_op2(b, given),
        [a, b, c] => a.apply_op3(b, c, given),
        _ => Err(Error::msg("an operation has one to three inputs")),
    }
}

impl Given {
    fn taken(&self) -> Result<Storage> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).take();
        made.ok_or_else(|| Error::msg(format!("what {} made is taken once", self.name)))
    }

    fn on_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.taken()? {
            Storage::Cpu(made) => Ok((made, self.shape.clone())),
            _ => Err(Error::msg(format!("what {} made is not in main memory", self.name))),
        }
    }

    fn on_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.taken()? {
            Storage::Cuda(made) => Ok((made, self.shape.clone())),
            _ => Err(Error::msg(format!("what {} made is not on the GPU", self.name))),
        }
    }

    fn back<const N: usize>(&self, inputs: [&Tensor; N], above: &Tensor) -> Result<[Option<Tensor>; N]> {
        let odd = |all: Vec<_>| Error::msg(format!("{} has {N} inputs, not {}", self.name, all.len()));
        (self.back)(&inputs, above)?.try_into().map_err(odd)
    }
}

impl CustomOp1 for Given {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, a: &Tensor, _: &Tensor, above: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.back([a], above)?;
        Ok(a)
    }
}

impl CustomOp2 for Given {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, above: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.back([a, b], above)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Given {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        above: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.back([a, b, c], above)?;
        Ok((a, b, c))
    }
}
