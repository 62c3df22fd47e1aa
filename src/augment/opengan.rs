//! OpenGAN on features: Kong and Ramanan, ICCV 2021, <https://arxiv.org/abs/2104.02939>. A generator G makes features out of
//! noise z that a discriminator D takes for those of the forget set. With outliers, the features of the retain set, a
//! round is
//!   D: min BCE(D(forget), 1) + open_weight BCE(D(retain), 0) + fake_weight BCE(D(G(z)), 0),
//!   G: min BCE(D(G(z)), 1), by the D that has just moved;
//! without them the second term is absent. As in the paper the epoch is chosen on validation data: here that whose D best
//! tells validation features of the forgotten classes from the others.

mod unseen;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::{Augmenter, Registered};
use crate::artifact::{Artifact, Features, Generator, Weights};
use crate::batches::{Batch, Loader};
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::nn::arch::{Arch, PRECISION, Precision, Shape};
use crate::nn::loss::binary_cross_entropy;
use crate::nn::model::Model;
use crate::nn::optim::Rule;
use crate::nn::schedule::Schedule;
use crate::rng::Rng;
use crate::settings::{COUNT, Entry, Field, NATURAL, POSITIVE, Type, read};
use crate::stage::{Context, Inputs};
use crate::trainer::{Crew, Recipe, Trainer};
use unseen::Unseen;

pub(super) const AUGMENTER: Registered = Registered {
    entry: Entry {
        name: "opengan",
        about: "a generator of features like those of the forget set",
        paper: "Kong and Ramanan, OpenGAN, ICCV 2021, https://arxiv.org/abs/2104.02939",
        version: 1,
        fields: &[
            Field::required("features", Type::Stage(&[Kind::Features]), "what to imitate: their forget part"),
            Field::or(
                "outliers",
                Type::Choice(&["none", "retain"]),
                "\"none\"",
                "whether the discriminator sees retain features, as not to be imitated",
            ),
            Field::or("open_weight", POSITIVE, "1.0", "weight of the outliers in its loss"),
            Field::optional("fake_weight", POSITIVE, "weight of made-up features; 0.2 with outliers, 1 without"),
            Field::or("epochs", COUNT, "100", "passes over the forget features"),
            Field::or("batch", COUNT, "128", "features of each kind a step"),
            Field::or("lr", POSITIVE, "0.0001", "learning rate of the generator"),
            Field::optional("d_lr", POSITIVE, "that of the discriminator; lr / 1.5 where not said"),
            Field::or("noise", COUNT, "100", "numbers that a feature is made out of"),
            Field::optional("width", COUNT, "of the networks' layers; an eighth of the features where not said"),
            PRECISION,
            Field::or(
                "select_every",
                NATURAL,
                "1",
                "epochs between looks at validation features; 0 takes the last epoch",
            ),
        ],
    },
    makes: Kind::Generator,
    make: |settings| Ok(Box::new(read::<Opengan>(settings)?)),
};

#[derive(Debug, Deserialize)]
struct Opengan {
    outliers: String,
    open_weight: f64,
    fake_weight: Option<f64>,
    epochs: usize,
    batch: usize,
    lr: f64,
    d_lr: Option<f64>,
    noise: usize,
    width: Option<usize>,
    precision: Precision,
    select_every: usize,
}

/// Of the discriminator's terms; that of real features has 1.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    pub open: f64,
    pub fake: f64,
}

/// One round on batches of features and noise, all `[B, d, 1, 1]`: the discriminator, the crew's model 1, makes a step,
/// then the generator, its student. Gives the generator's loss.
pub fn round(crew: &mut Crew, closed: &Tensor, open: Option<&Tensor>, noise: &Tensor, shares: Shares) -> Result<f64> {
    let fake = crew.train(noise)?.logits;
    let (batch, width) = fake.dims2()?;
    let fake = fake.reshape((batch, width, 1, 1))?;
    let mut judge = |x: &Tensor, target: f64| binary_cross_entropy(&crew.model_mut(1).train(x)?.logits, target);
    let mut loss = judge(closed, 1.0)?;
    if let Some(open) = open {
        loss = (loss + (judge(open, 0.0)? * shares.open)?)?;
    }
    loss = (loss + (judge(&fake.detach(), 0.0)? * shares.fake)?)?;
    crew.descend(&loss.into(), &[1])?;
    let loss = binary_cross_entropy(&crew.model_mut(1).train(&fake)?.logits, 1.0)?;
    crew.descend(&loss.into(), &[0])
}

impl Augmenter for Opengan {
    fn more(&self, inputs: &Inputs, context: &Context, rng: &Rng) -> Result<Artifact> {
        let Artifact::Features(features) = inputs.get("features")? else {
            return Err(Error::invalid("`features` is not features"));
        };
        let features_wide = part(features, "forget")?.dim(1)?;
        let width = self.width.unwrap_or((features_wide / 8).max(1));
        let network = |name: &str, shape: Shape, reads: usize, makes: usize| -> Result<Model> {
            let arch = Arch::build(name, shape, makes, [reads, 1, 1], &[], &[])?.with_precision(self.precision);
            Model::init(&arch, &rng.fork(name), context.device)
        };
        let mut generator = network("generator", Shape::OpenganGenerator { width }, self.noise, features_wide)?;
        let discriminator = network("discriminator", Shape::OpenganDiscriminator { width }, features_wide, 1)?;
        let note = match self.train(&mut generator, discriminator, features, context, rng)? {
            Some(Best { epoch, score, theta, stats }) => {
                generator.set_theta_tensor(&theta)?;
                generator.set_stats(&stats)?;
                format!(
                    "the generator of epoch {} of {}, whose discriminator tells validation features of forgotten classes \
                     from others with an area under the curve of {score:.3}",
                    epoch + 1,
                    self.epochs
                )
            }
            None => {
                "the generator of the last epoch: nothing to choose by, without validation features of forgotten and \
                     of other classes"
                    .to_owned()
            }
        };
        context.desk.note(&note);
        let trained_on = "features of the forget set".to_owned();
        let network = Weights::of(&generator, trained_on)?;
        Ok(Artifact::Generator(Generator { network, of: features.arch.clone() }.into()))
    }
}

/// The generator of the epoch that did best on validation features, of equal ones the last.
struct Best {
    epoch: usize,
    score: f64,
    theta: Tensor,
    stats: Tensor,
}

impl Opengan {
    /// Leaves the generator as the last epoch made it.
    fn train(
        &self,
        generator: &mut Model,
        discriminator: Model,
        features: &Features,
        context: &Context,
        rng: &Rng,
    ) -> Result<Option<Best>> {
        let (closed, retain) = (part(features, "forget")?, part(features, "retain")?);
        let outliers = (self.outliers == "retain").then_some(retain);
        let fake = self.fake_weight.unwrap_or(if outliers.is_some() { 0.2 } else { 1.0 });
        let shares = Shares { open: self.open_weight, fake };
        // Batch norm makes nothing of a single feature: a last batch of one is left out.
        let count = closed.dim(0)?;
        let rounds = (0..count).step_by(self.batch).filter(|start| count - start > 1).count();
        if rounds == 0 || self.batch < 2 {
            return Err(Error::invalid("`opengan` needs two images to forget and a `batch` of two at least"));
        }
        let d_lr = self.d_lr.unwrap_or(self.lr / 1.5);
        let mut trainer = Trainer::new(generator, &recipe(self.lr), rounds * self.epochs, None, context.desk)?.with(
            "discriminator",
            discriminator,
            &recipe(d_lr),
        )?;
        let unseen = if self.select_every > 0 { Unseen::of(features)? } else { None };
        let mut best: Option<Best> = None;
        for epoch in 0..self.epochs {
            let stream = |purpose: &str| rng.fork(purpose).at(epoch as u64);
            let order = shuffled(count, stream("forget"));
            let others = shuffled(retain.dim(0)?, stream("retain"));
            let batches = order.chunks(self.batch).take(rounds).map(|rows| {
                let x = pick(closed, rows)?.to_device(context.device)?;
                Ok(Batch { x, y: Tensor::ones(rows.len(), DType::U32, context.device)?, view: None })
            });
            let mut epochs = vec![Vec::new(); epoch];
            epochs.push(batches.collect::<Result<_>>()?);
            trainer.rounds(epoch, &Loader::Given(epochs), |crew, batch, index| {
                let count = batch.x.dim(0)?;
                let open = outliers.map(|outliers| {
                    let rows = others.iter().copied().cycle().skip(index * self.batch).take(count);
                    Ok::<_, Error>(pick(outliers, &rows.collect::<Vec<u32>>())?.to_device(context.device)?)
                });
                let noise = stream("noise").at(index as u64).normals(count * self.noise);
                let noise = Tensor::from_vec(noise, (count, self.noise, 1, 1), context.device)?;
                round(crew, &batch.x, open.transpose()?.as_ref(), &noise, shares)
            })?;
            let Some(unseen) = unseen.as_ref().filter(|_| (epoch + 1) % self.select_every == 0) else { continue };
            let score = trainer
                .keep(&format!("score {epoch}"), |crew| Ok(Tensor::new(unseen.area(crew.model(1))?, &Device::Cpu)?))?;
            let score = score.to_scalar::<f64>()?;
            if best.as_ref().is_none_or(|best| score >= best.score) {
                let theta = trainer.keep(&format!("theta {epoch}"), |generator| generator.theta_tensor())?;
                let stats = trainer.keep(&format!("stats {epoch}"), |generator| Ok(generator.stats()))?;
                best = Some(Best { epoch, score, theta, stats });
            }
        }
        Ok(best)
    }
}

fn recipe(lr: f64) -> Recipe {
    let optimizer = Rule::Adam { betas: [0.5, 0.999], eps: 1e-8, weight_decay: 0.0 };
    Recipe { lr, optimizer, schedule: Schedule::Constant { warmup: 0.0 } }
}

/// Features of a part, `[n, d]`.
fn part<'a>(features: &'a Features, name: &str) -> Result<&'a Tensor> {
    let part = features.parts.get(name);
    Ok(&part.ok_or_else(|| Error::invalid(format!("the features have no part `{name}`")))?.0)
}

fn shuffled(count: usize, mut rng: Rng) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    rng.shuffle(&mut order);
    order
}

/// Rows as a batch, `[B, d, 1, 1]`.
fn pick(features: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let width = features.dim(1)?;
    let chosen = Tensor::from_slice(rows, rows.len(), features.device())?;
    Ok(features.index_select(&chosen, 0)?.reshape((rows.len(), width, 1, 1))?)
}
