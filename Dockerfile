# The builder needs Rust and a C compiler; the result needs nothing: one static binary in an otherwise empty image.
ARG BUILDER_IMAGE=rust:1-bookworm

FROM ${BUILDER_IMAGE} AS build
WORKDIR /src
# With the C library inside, its resolver too: no shared object has to be in the final image.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# The dependencies alone first: this layer is made anew only when they change.
COPY Cargo.toml Cargo.lock ./
COPY benches ./benches
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin tidegate --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && rm -r src
COPY src ./src
# The empty files above are younger than a checkout may be; cargo goes by the time.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin tidegate --target "$(rustc -vV | sed -n 's/^host: //p')" \
    && strip --strip-debug -o /tidegate target/*/release/tidegate

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="A reverse proxy for OpenAI-style APIs: bursts wait in a fair, bounded queue instead of failing with 429" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /tidegate /usr/local/bin/tidegate
# A number, because Kubernetes cannot tell from a name that it is not root.
USER 65532:65532
ENV TIDEGATE_LISTEN__ADDRESS=0.0.0.0:8080 \
    TIDEGATE_ADMIN__ADDRESS=0.0.0.0:9900
EXPOSE 8080 9900
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/local/bin/tidegate", "health"]
ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["run"]
