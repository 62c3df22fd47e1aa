//! Python's pickle format (protocols 2 to 4) as plain data. Nothing is imported or called: a call stays a `Call`. Values
//! lie in one list and refer to each other by number, so a small file cannot unfold into a large structure, and depth
//! costs no stack. The format: Python's `pickletools`.

pub mod write;

use std::collections::BTreeMap;

/// The number of a value in its pickle.
pub type Id = usize;

/// More values than any checkpoint of a network has; the stack is no deeper either.
const LIMIT: usize = 4 << 20;

#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A class or function by its module and name: "torch._utils", "_rebuild_tensor_v2". Not joined: a few bytes of a
    /// pickle may name the same long texts again and again.
    Global(&'a str, &'a str),
    Tuple(Vec<Id>),
    /// Lists and sets.
    List(Vec<Id>),
    /// Dictionaries, ordered ones among them, in the order of the file.
    Dict(Vec<(Id, Id)>),
    /// What Python would have called, with its arguments and the state given to the result.
    Call {
        callable: Id,
        args: Id,
        state: Option<Id>,
    },
    /// Something that lies outside of the pickle: a tensor's storage.
    Persistent(Id),
}

/// A read pickle. It may hold cycles: walk it to a fixed depth.
#[derive(Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads a whole pickle; the error is a fragment that says where and what.
    pub fn parse(input: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine { input, at: 0, values: Vec::new(), stack: Vec::new(), memo: BTreeMap::new() };
        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { values: machine.values, root }),
                Err(why) => return Err(format!("the pickle is broken at byte {at}: {why}")),
            }
        }
    }

    #[must_use]
    pub fn root(&self) -> Id {
        self.root
    }

    #[must_use]
    pub fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id).unwrap_or(&Value::None)
    }

    /// Text of at most so many bytes, whether Python 2 or 3 wrote it. Longer ones are not even looked at: a small pickle
    /// can hold one in very many places.
    #[must_use]
    pub fn name(&self, id: Id, longest: usize) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(text) if text.len() <= longest => Some(text),
            Value::Bytes(bytes) if bytes.len() <= longest => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value under a key of a dictionary; of several the last, as Python would have it.
    #[must_use]
    pub fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(dict) else { return None };
        // By bytes, whose lengths are compared first: every key may be the same very long one.
        let named = |id: Id| match self.get(id) {
            Value::Text(text) => text.as_bytes() == key.as_bytes(),
            Value::Bytes(bytes) => *bytes == key.as_bytes(),
            _ => false,
        };
        entries.iter().rev().find(|(name, _)| named(*name)).map(|(_, value)| *value)
    }

    /// The items of a tuple or list.
    #[must_use]
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    #[must_use]
    pub fn natural(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Module, name and arguments of a call.
    #[must_use]
    pub fn call(&self, id: Id) -> Option<(&'a str, &'a str, &[Id])> {
        let Value::Call { callable, args, .. } = self.get(id) else { return None };
        let Value::Global(module, name) = self.get(*callable) else { return None };
        Some((module, name, self.items(*args)?))
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    /// None is a mark.
    stack: Vec<Option<Id>>,
    memo: BTreeMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.input.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("{count} bytes expected, {} left", self.input.len() - self.at))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// A little-endian number without sign.
    fn number(&mut self, bytes: u64) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a line without an end")?;
        let line = self.take(end as u64)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn text(&mut self, width: u64) -> Result<Value<'a>, String> {
        let length = self.number(width)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map(Value::Text).map_err(|_| "a text that is not UTF-8".to_owned())
    }

    fn bytes(&mut self, width: u64) -> Result<Value<'a>, String> {
        let length = self.number(width)?;
        Ok(Value::Bytes(self.take(length)?))
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() == LIMIT {
            return Err(format!("more than {LIMIT} values"));
        }
        self.values.push(value);
        self.lay(Some(self.values.len() - 1))
    }

    /// A value or a mark on the stack.
    fn lay(&mut self, what: Option<Id>) -> Result<(), String> {
        if self.stack.len() == LIMIT {
            return Err(format!("more than {LIMIT} values"));
        }
        self.stack.push(what);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        self.stack.pop().flatten().ok_or_else(|| "a value is missing".to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().flatten().ok_or_else(|| "a value is missing".to_owned())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.stack.iter().rposition(Option::is_none).ok_or("a mark is missing")?;
        let items = self.stack.split_off(mark).into_iter().flatten().collect();
        Ok(items)
    }

    fn last(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    /// Items of anything but a list, such as a subclass of one, are of no use here.
    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let top = self.top()?;
        if let Some(Value::List(list)) = self.values.get_mut(top) {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".to_owned());
        }
        let top = self.top()?;
        if let Some(Value::Dict(entries)) = self.values.get_mut(top) {
            entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(())
    }

    fn call(&mut self, callable: Id, args: Id) -> Result<(), String> {
        let dict =
            matches!(self.values.get(callable), Some(Value::Global("collections", "OrderedDict" | "defaultdict")));
        self.push(if dict { Value::Dict(Vec::new()) } else { Value::Call { callable, args, state: None } })
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let top = self.top()?;
        if self.memo.len() == LIMIT {
            return Err(format!("more than {LIMIT} values"));
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or_else(|| format!("nothing is remembered as {key}"))?;
        self.lay(Some(id))
    }

    /// One instruction; the root where it was the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let code = self.number(1)? as u8;
        match code {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.lay(None)?,
            b'0' => drop(self.stack.pop()),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.lay(Some(top))?;
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(code == 0x88))?,
            b'J' => {
                let value = self.number(4)? as u32 as i32;
                self.push(Value::Int(value.into()))?;
            }
            b'K' | b'M' => {
                let value = self.number(if code == b'K' { 1 } else { 2 })?;
                self.push(Value::Int(value as i64))?;
            }
            0x8a => {
                let length = self.number(1)?;
                if length > 8 {
                    return Err(format!("a whole number of {length} bytes"));
                }
                let shift = 64 - 8 * length as u32;
                let value = (self.number(length)? as i64).checked_shl(shift).unwrap_or(0) >> shift.min(63);
                self.push(Value::Int(value))?;
            }
            b'G' => {
                let bits = self.number(8)?.swap_bytes();
                self.push(Value::Float(f64::from_bits(bits)))?;
            }
            b'X' | 0x8c | 0x8d => {
                let width = match code {
                    b'X' => 4,
                    0x8c => 1,
                    _ => 8,
                };
                let value = self.text(width)?;
                self.push(value)?;
            }
            b'T' | b'B' | b'U' | b'C' | 0x8e => {
                let width = match code {
                    b'T' | b'B' => 4,
                    0x8e => 8,
                    _ => 1,
                };
                let value = self.bytes(width)?;
                self.push(value)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.last(usize::from(code - 0x84))?;
                self.push(Value::Tuple(items))?;
            }
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b'l' | 0x91 => {
                let items = self.since_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.since_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set(&items)?;
            }
            b's' => {
                let items = self.last(2)?;
                self.set(&items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(module, name))?;
            }
            0x93 => {
                let parts = self.last(2)?;
                let [Some(Value::Text(module)), Some(Value::Text(name))] =
                    [0, 1].map(|at| self.values.get(*parts.get(at)?))
                else {
                    return Err("a name that is no text".to_owned());
                };
                self.push(Value::Global(module, name))?;
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                let callable = self.pop()?;
                self.call(callable, args)?;
            }
            0x92 => {
                self.pop()?;
                let args = self.pop()?;
                let callable = self.pop()?;
                self.call(callable, args)?;
            }
            b'b' => {
                let given = self.pop()?;
                let top = self.top()?;
                if let Some(Value::Call { state, .. }) = self.values.get_mut(top) {
                    *state = Some(given);
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            b'q' | b'r' => {
                let key = self.number(if code == b'q' { 1 } else { 4 })?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' | b'j' => {
                let key = self.number(if code == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            other => return Err(format!("instruction {other:#04x} is not of the kind that data needs")),
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_texts_and_containers_are_read() {
        // {"a": (1, -2, 1.5, None, [True]), b"b": 300}, written by hand from the format's description
        let bytes =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00a(K\x01J\xfe\xff\xff\xffG\x3f\xf8\0\0\0\0\0\0N]\x88atU\x01bM\x2c\x01u.";
        let pickle = Pickle::parse(bytes).unwrap();
        let a = pickle.items(pickle.entry(pickle.root(), "a").unwrap()).unwrap();
        let values: Vec<&Value> = a.iter().map(|&id| pickle.get(id)).collect();
        assert_eq!(values[..4], [&Value::Int(1), &Value::Int(-2), &Value::Float(1.5), &Value::None]);
        assert_eq!(pickle.get(pickle.items(a[4]).unwrap()[0]), &Value::Bool(true));
        assert_eq!(pickle.natural(pickle.entry(pickle.root(), "b").unwrap()), Some(300));
        let long = Pickle::parse(b"\x8a\x02\xff\xff.").unwrap();
        assert_eq!(long.get(long.root()), &Value::Int(-1));
        assert_eq!(Pickle::parse(b"\x8a\x00.").unwrap().get(0), &Value::Int(0));
    }

    #[test]
    fn hostile_pickles_are_errors_and_stay_small() {
        for bytes in
            [&b""[..], b"X\xff\xff\xff\xff", b"u.", b"R", b"h\x05", b"\x8a\xffx", b"a.", b"q\x01", b"\xff", b"("]
        {
            assert!(Pickle::parse(bytes).is_err(), "{bytes:?}");
        }
        // Doubling by memo: 2^60 values if unfolded, 120 here.
        let mut bomb = b")q\x00".to_vec();
        for _ in 0..60 {
            bomb.extend(b"h\x00h\x00\x86q\x00");
        }
        bomb.push(b'.');
        assert!(Pickle::parse(&bomb).unwrap().values.len() < 100);
        // A million tuples one in another.
        let mut deep = b")".to_vec();
        deep.extend(vec![0x85; 1_000_000]);
        deep.push(b'.');
        drop(Pickle::parse(&deep).unwrap());
        assert!(Pickle::parse(&vec![b'N'; LIMIT + 2]).unwrap_err().contains("more than"));
    }
}
