// Package blob is the content-addressed store of what images are made of: layers and configurations, each a file named by
// its digest, shared by all images and by the steps of builds.
package blob
