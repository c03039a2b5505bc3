//go:build judges

// Package interop names the programs that tools/interop/build makes, so that go.mod keeps their versions.
package interop

import (
	_ "github.com/envoyproxy/go-control-plane/pkg/test/main"
	_ "github.com/summerwind/h2spec/cmd/h2spec"
	_ "google.golang.org/grpc/interop/client"
	_ "google.golang.org/grpc/interop/server"
)
