module github.com/ostree-snapshotter/ostree-snapshotter/integration/tools/goerofs

go 1.26.6

require github.com/erofs/go-erofs v0.3.1
