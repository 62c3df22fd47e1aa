//! Draws mistakes: the place in the text with a caret, what was expected, the nearest valid choice.

use annotate_snippets::{AnnotationKind, Element, Level, Renderer, Snippet};

use crate::error::{Mistake, plural};

/// Nobody reads more.
const SHOWN: usize = 50;

/// All mistakes, one after the other, and how many there are.
#[must_use]
pub fn render(mistakes: &[Mistake], colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for mistake in mistakes.iter().take(SHOWN) {
        let mut group = Level::ERROR.primary_title(mistake.what.as_str()).elements(Vec::<Element>::new());
        if let Some(place) = &mistake.place {
            let source = &place.source;
            let end = source.text.len();
            let span = place.span.start.min(end)..place.span.end.min(end);
            let mark = AnnotationKind::Primary.span(span).label(mistake.label.as_str());
            group = group.element(Snippet::source(source.text.as_str()).path(source.name.as_str()).annotation(mark));
        }
        for (place, what) in &mistake.related {
            let mark = AnnotationKind::Context.span(place.span.clone()).label(what.as_str());
            let source = &place.source;
            group = group.element(Snippet::source(source.text.as_str()).path(source.name.as_str()).annotation(mark));
        }
        if let Some(help) = &mistake.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        text += &renderer.render(&[group]);
        text += "\n\n";
    }
    if mistakes.len() > SHOWN {
        text += &format!("and {} more\n\n", mistakes.len() - SHOWN);
    }
    text + &format!("{}; nothing was run", plural(mistakes.len(), "mistake"))
}
