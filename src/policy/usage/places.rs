//! Which places of an answer matter, and what for.
//!
//! One table for all dialects: chat and text completions, responses, embeddings, reranking, transcriptions, and
//! Anthropic's messages. `usage` counts where the server puts it and nowhere else. What a model prints, what a tool is
//! called with and what a client had repeated to it can look like usage as much as it likes: it is in a string, or
//! under a key that is not in this table.

use super::scan::Form;
use super::tokens::{Field, Found};

/// What was found so far; the document's walk adds to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) found: Found,
    /// It reports an error.
    pub(super) error: bool,
    /// The answer said that it is over.
    pub(super) finished: bool,
    /// This document carries a piece of the answer.
    pub(super) output: bool,
}

/// An object or array whose inside matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Root,
    /// What carries `usage` in an event: `response`, `message`, `x_groq`.
    Carrier,
    Usage,
    PromptDetails,
    OutputDetails,
    /// The array.
    Choices,
    Choice,
    Delta,
}

/// What a value is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Nothing,
    Enter(Node),
    Count(Field),
    /// A piece of the answer, unless it is empty.
    Output,
    /// A piece of the answer if it is text, else an object with pieces.
    Delta,
    /// A report of an error, unless it is empty.
    Error,
    /// The event's type.
    Kind,
}

/// What the value of `key` in `node` is good for.
pub(super) fn meaning(node: Node, key: &[u8], form: Form) -> Value {
    match node {
        Node::Root => match key {
            b"usage" => Value::Enter(Node::Usage),
            b"error" => Value::Error,
            _ if form == Form::Json => Value::Nothing,
            b"choices" => Value::Enter(Node::Choices),
            b"delta" => Value::Delta,
            b"type" => Value::Kind,
            b"response" | b"message" | b"x_groq" => Value::Enter(Node::Carrier),
            _ => Value::Nothing,
        },
        Node::Carrier => match key {
            b"usage" => Value::Enter(Node::Usage),
            b"error" => Value::Error,
            _ => Value::Nothing,
        },
        Node::Choices => Value::Nothing,
        Node::Choice => match key {
            b"delta" => Value::Delta,
            b"text" => Value::Output,
            _ => Value::Nothing,
        },
        Node::Delta => match key {
            b"content" | b"text" | b"tool_calls" | b"partial_json" | b"reasoning_content" | b"reasoning"
            | b"thinking" | b"refusal" | b"audio" | b"function_call" => Value::Output,
            _ => Value::Nothing,
        },
        Node::Usage => usage(key),
        Node::PromptDetails => match key {
            b"cached_tokens" => Value::Count(Field::Cached),
            b"audio_tokens" => Value::Count(Field::AudioIn),
            _ => Value::Nothing,
        },
        Node::OutputDetails => match key {
            b"reasoning_tokens" => Value::Count(Field::Reasoning),
            b"audio_tokens" => Value::Count(Field::AudioOut),
            _ => Value::Nothing,
        },
    }
}

fn usage(key: &[u8]) -> Value {
    match key {
        b"prompt_tokens" => Value::Count(Field::Prompt),
        b"input_tokens" => Value::Count(Field::Input),
        b"completion_tokens" | b"output_tokens" => Value::Count(Field::Output),
        b"total_tokens" => Value::Count(Field::Total),
        // some servers do without the details
        b"cached_tokens" | b"prompt_cache_hit_tokens" => Value::Count(Field::Cached),
        b"reasoning_tokens" => Value::Count(Field::Reasoning),
        b"cache_read_input_tokens" => Value::Count(Field::CacheRead),
        b"cache_creation_input_tokens" => Value::Count(Field::CacheWritten),
        // transcriptions have the singular
        b"prompt_tokens_details" | b"input_tokens_details" | b"input_token_details" => {
            Value::Enter(Node::PromptDetails)
        }
        b"completion_tokens_details" | b"output_tokens_details" | b"output_token_details" => {
            Value::Enter(Node::OutputDetails)
        }
        _ => Value::Nothing,
    }
}

/// What an event's type says by itself.
pub(super) fn kind(text: &[u8], findings: &mut Findings) {
    match text {
        b"message_stop" | b"response.completed" | b"response.incomplete" | b"response.failed" => {
            findings.finished = true;
        }
        b"error" => findings.error = true,
        _ => {}
    }
}
