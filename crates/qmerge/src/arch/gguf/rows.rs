//! The order of rows, where a file and the model have different ones.

use crate::error::{Result, malformed, mismatch};
use crate::open::ModelConfig;

/// Rows of attention that an architecture stores in an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heads {
    /// Of queries, paired by neighbours.
    Queries,
    /// Of keys, likewise, of which a model may have fewer.
    Keys,
    /// Queries, keys and values in one matrix, which the model has by groups that share a key.
    Groups,
}

/// Between the two orders: where a row of the model lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Row 2i + h of a head in the file is row i + h · (rows / 2) of it in the model.
    Pairs {
        /// Rows of a head.
        head: usize,
    },
    /// All queries, all keys and all values in the file; in the model, group by group, the queries that share a key, the key, the value.
    Groups {
        /// How many keys there are.
        groups: usize,
        /// Queries that share one.
        queries: usize,
        /// Rows of a head.
        head: usize,
    },
}

/// Between the order of rows in the file and that in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Model,
    File,
}

impl RowOrder {
    /// Rows among which places change: a matrix has a whole number of them.
    pub(crate) fn step(self) -> usize {
        match self {
            Self::Pairs { head } => head,
            Self::Groups { groups, queries, head } => groups * (queries + 2) * head,
        }
    }

    /// Where the model's row of a step lies in the file.
    fn in_file(self, row: usize) -> usize {
        match self {
            Self::Pairs { head } => 2 * (row % (head / 2).max(1)) + row / (head / 2).max(1),
            Self::Groups { groups, queries, head } => {
                let (slot, within) = (row / head.max(1), row % head.max(1));
                let (group, own) = (slot / (queries + 2), slot % (queries + 2));
                let slot = match own.checked_sub(queries) {
                    None => group * queries + own,
                    Some(kind) => groups * (queries + kind) + group,
                };
                slot * head + within
            }
        }
    }

    /// Items of whole steps, `each` of them for a row, in the other order.
    pub(crate) fn permuted<T: Clone>(self, items: &[T], each: usize, to: To) -> Vec<T> {
        let step = self.step();
        let mut places: Vec<usize> = (0..step).map(|row| self.in_file(row)).collect();
        if to == To::File {
            let mut back = vec![0; step];
            for (row, &place) in places.iter().enumerate() {
                if let Some(own) = back.get_mut(place) {
                    *own = row;
                }
            }
            places = back;
        }
        let mut permuted = Vec::with_capacity(items.len());
        for rows in items.chunks((step * each).max(1)) {
            for from in &places {
                permuted.extend_from_slice(rows.get(from * each..(from + 1) * each).unwrap_or_default());
            }
        }
        permuted
    }
}

impl Heads {
    /// The order of so many rows in a model of so many heads of queries and keys; `None` if they are not whole heads.
    pub(super) fn order_of(self, rows: usize, heads: usize, kv_heads: usize) -> Option<RowOrder> {
        let whole =
            |heads: usize| rows.checked_div(heads).filter(|head| *head > 0 && head.checked_mul(heads) == Some(rows));
        match self {
            Self::Queries | Self::Keys => {
                let head = whole(if self == Self::Queries { heads } else { kv_heads })?;
                head.is_multiple_of(2).then_some(RowOrder::Pairs { head })
            }
            Self::Groups => {
                let queries = heads.checked_div(kv_heads).filter(|queries| queries * kv_heads == heads)?;
                let head = whole(queries.checked_add(2)?.checked_mul(kv_heads)?)?;
                Some(RowOrder::Groups { groups: kv_heads, queries, head })
            }
        }
    }

    /// What rows have to be, in words.
    pub(super) fn wanted(self, heads: usize, kv_heads: usize) -> String {
        match self {
            Self::Queries => format!("{heads} heads of pairs of rows"),
            Self::Keys => format!("{kv_heads} heads of pairs of rows"),
            Self::Groups => format!("{heads} heads of queries, {kv_heads} of keys and as many of values"),
        }
    }

    /// The order of so many rows, by the model's configuration. Errors if they are not whole heads.
    pub(crate) fn order(self, config: Option<&ModelConfig>, rows: usize) -> Result<RowOrder> {
        let count = |keys: &[&str]| {
            let count = keys.iter().find_map(|key| config?.json.get(*key)?.as_u64());
            count.and_then(|count| usize::try_from(count).ok()).filter(|&count| count > 0)
        };
        let heads = count(&["num_attention_heads", "n_head"]).ok_or_else(|| {
            malformed("the base's configuration does not say how many heads its attention has, by which the rows of this adapter are ordered")
        })?;
        let kv_heads = count(&["num_key_value_heads", "num_kv_heads"]).unwrap_or(heads);
        self.order_of(rows, heads, kv_heads).ok_or_else(|| {
            mismatch(format!("{rows} rows, which are not {} as in the base", self.wanted(heads, kv_heads)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_halves() {
        let pairs = RowOrder::Pairs { head: 4 };
        assert_eq!(pairs.permuted(&[0, 1, 2, 3, 4, 5, 6, 7], 1, To::Model), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(pairs.permuted(&[0, 1, 2, 3, 4, 5, 6, 7], 2, To::Model), [0, 1, 4, 5, 2, 3, 6, 7]);
    }

    /// Two keys that two queries share each, of two rows.
    #[test]
    fn groups_lie_by_kinds_in_the_file() {
        let groups = Heads::Groups.order_of(16, 4, 2).unwrap();
        let model: Vec<&str> = "q0 q1 k0 v0 q2 q3 k1 v1".split(' ').flat_map(|head| [head; 2]).collect();
        let file: Vec<&str> = "q0 q1 q2 q3 k0 k1 v0 v1".split(' ').flat_map(|head| [head; 2]).collect();
        assert_eq!(groups.permuted(&model, 1, To::File), file);
        assert_eq!(groups.permuted(&file, 1, To::Model), model);
        assert_eq!(Heads::Groups.order_of(15, 4, 2), None);
        assert_eq!(Heads::Groups.order_of(16, 4, 3), None);
        assert_eq!(Heads::Keys.order_of(6, 4, 2), None);
    }
}
