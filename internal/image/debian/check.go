package debian

// CheckHost says, with a hint, why this user could not build an image on this host. It starts nothing. That mmdebstrap
// itself is there is another check.
func CheckHost() error { return thisHost().check() }
