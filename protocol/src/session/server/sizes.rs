//! Sans-io: how many publications fit in how many bytes.

use crate::frame::Publication;

/// About what a publication takes in the larger of its encodings.
pub(super) fn wire_size(publication: &Publication) -> usize {
    // Base64, and the other fields, roughly.
    let payload = publication.data.as_ref().map_or(0, |data| data.len());
    let binary = publication.data_base64.as_ref().map_or(0, |data| data.len() * 4 / 3);
    payload + binary + publication.channel.len() + 96
}

/// Takes publications off the front, as many as fit.
pub(super) fn split_at(publications: &mut Vec<Publication>, budget: usize) -> Vec<Publication> {
    let rest = publications.split_off(fitting(publications.iter(), budget));
    std::mem::replace(publications, rest)
}

/// Cuts what is over the budget off the end; true where something was. At least one is kept, or nothing would move.
pub(super) fn cut_over(publications: &mut Vec<Publication>, budget: usize) -> bool {
    let fits = fitting(publications.iter(), budget).max(1);
    let over = fits < publications.len();
    publications.truncate(fits);
    over
}

/// Cuts the oldest off until the rest fits; false where something was cut.
pub(super) fn keep_newest(publications: &mut Vec<Publication>, budget: usize) -> bool {
    let cut = publications.len() - fitting(publications.iter().rev(), budget);
    publications.drain(..cut);
    cut == 0
}

fn fitting<'a>(publications: impl Iterator<Item = &'a Publication>, budget: usize) -> usize {
    let mut used = 0;
    publications
        .take_while(|publication| {
            used += wire_size(publication);
            used <= budget
        })
        .count()
}
