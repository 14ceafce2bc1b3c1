// Package layer puts the layers of an OCI image on top of each other: one flat tar stream, or a tree that can be looked
// into.
package layer
