//! A pickle of protocol 2, for what a state dict is made of.

/// A value to write. Nothing is shared, so it is as deep as it was built.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Item<'a>>),
    Dict(Vec<(Item<'a>, Item<'a>)>),
    /// A module and a name in it.
    Global(&'static str, &'static str),
    Call(Box<Item<'a>>, Vec<Item<'a>>),
    /// Something that lies outside of the pickle.
    Persistent(Box<Item<'a>>),
}

/// The bytes of a pickle.
#[must_use]
pub fn write(root: &Item) -> Vec<u8> {
    let mut bytes = vec![0x80, 2];
    root.put(&mut bytes);
    bytes.push(b'.');
    bytes
}

impl Item<'_> {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Item::Bool(value) => bytes.push(if *value { 0x88 } else { 0x89 }),
            Item::Int(value) => match i32::try_from(*value) {
                Ok(small) => {
                    bytes.push(b'J');
                    bytes.extend(small.to_le_bytes());
                }
                Err(_) => {
                    bytes.extend([0x8a, 8]);
                    bytes.extend(value.to_le_bytes());
                }
            },
            Item::Text(text) => {
                bytes.push(b'X');
                bytes.extend((text.len() as u32).to_le_bytes());
                bytes.extend(text.bytes());
            }
            Item::Tuple(items) => tuple(items, bytes),
            Item::Dict(entries) => {
                bytes.extend(*b"}(");
                for (key, value) in entries {
                    key.put(bytes);
                    value.put(bytes);
                }
                bytes.push(b'u');
            }
            Item::Global(module, name) => bytes.extend(format!("c{module}\n{name}\n").bytes()),
            Item::Call(callable, args) => {
                callable.put(bytes);
                tuple(args, bytes);
                bytes.push(b'R');
            }
            Item::Persistent(id) => {
                id.put(bytes);
                bytes.push(b'Q');
            }
        }
    }
}

fn tuple(items: &[Item], bytes: &mut Vec<u8>) {
    bytes.push(b'(');
    for item in items {
        item.put(bytes);
    }
    bytes.push(b't');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pickle::{Pickle, Value};

    #[test]
    fn what_is_written_is_read() {
        let call = Item::Call(Item::Global("a.b", "c").into(), vec![Item::Bool(true), Item::Int(3)]);
        let outside = Item::Persistent(Item::Tuple(vec![Item::Text("storage"), Item::Int(0)]).into());
        let big = Item::Int(5_000_000_000);
        let dict = Item::Dict(vec![
            (Item::Text("call"), call),
            (Item::Text("outside"), outside),
            (Item::Text("big"), big),
            (Item::Text("empty"), Item::Dict(Vec::new())),
            (Item::Text("wörter"), Item::Tuple(Vec::new())),
        ]);
        let bytes = write(&dict);
        let pickle = Pickle::parse(&bytes).unwrap();
        let entry = |key: &str| pickle.entry(pickle.root(), key).unwrap();
        let (module, name, args) = pickle.call(entry("call")).unwrap();
        assert_eq!((module, name), ("a.b", "c"));
        assert_eq!((pickle.get(args[0]), pickle.get(args[1])), (&Value::Bool(true), &Value::Int(3)));
        let Value::Persistent(id) = pickle.get(entry("outside")) else { panic!() };
        assert_eq!(pickle.name(pickle.items(*id).unwrap()[0], 9), Some("storage"));
        assert_eq!(pickle.natural(entry("big")), Some(5_000_000_000));
        assert_eq!(pickle.get(entry("empty")), &Value::Dict(Vec::new()));
        assert_eq!(pickle.get(entry("wörter")), &Value::Tuple(Vec::new()));
    }
}
