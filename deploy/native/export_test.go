package native

// ReadWithin is Read with a limit of its own for all metadata objects, and for all lists of extended attributes.
var ReadWithin = read
