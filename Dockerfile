# The program and nothing else: one static file in an empty image.
#
#     docker build --tag qmerge .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" qmerge merge --base base --adapter lora --output merged
#
# The working directory is /work. Models by their hub id are downloaded to /work/.cache; --volume ~/.cache/huggingface:/work/.cache uses those that are there.
FROM rust:1-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package qmerge-cli && mkdir /work

FROM scratch
COPY --from=build /src/target/release/qmerge /qmerge
COPY --from=build /src/LICENSE-MIT /src/LICENSE-APACHE /licenses/
COPY --from=build /work /work
WORKDIR /work
ENV HF_HOME=/work/.cache
ENTRYPOINT ["/qmerge"]
