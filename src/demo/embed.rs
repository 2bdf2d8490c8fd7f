//! Embeddings: vectors of unit length that depend on the request's number and on nothing else.

use bytes::Bytes;
use serde_json::{Value, json};

use super::ask::Ask;
use crate::chance::{hash, unit};

/// The longest embedding it gives.
const MAX_DIMENSIONS: usize = 4096;

/// The whole answer, a vector for each input.
pub(crate) fn embeddings(ask: &Ask, seed: u64, request: u64) -> Bytes {
    let size = ask.dimensions.unwrap_or(256).min(MAX_DIMENSIONS);
    let data: Vec<Value> = (0..ask.inputs.len())
        .map(|index| {
            let own = hash(seed, request, index as u64);
            let raw: Vec<f64> = (0..size).map(|i| unit(hash(own, i as u64, 0)) - 0.5).collect();
            // Unit length, as clients that use a dot product for the cosine expect.
            let norm = raw.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
            let vector: Vec<f32> = raw.iter().map(|x| (x / norm) as f32).collect();
            let embedding = if ask.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::String(base64(&bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let usage = json!({ "prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens });
    let answer = json!({ "object": "list", "model": ask.model, "data": data, "usage": usage });
    Bytes::from(answer.to_string())
}

/// RFC 4648 §4, with padding: openai-python asks for its vectors so.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (group >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648s() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
