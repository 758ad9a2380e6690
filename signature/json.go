package signature

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxDepth bounds the nesting of JSON documents that are read before they are known to be good.
const maxDepth = 64

// decodeObject decodes a JSON object, and nothing after it. field returns the destination of a key's value, nil for a key
// that must not occur. A key that occurs twice is an error: readers that differ about it could be told different things.
func decodeObject(data []byte, field func(key string) any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil {
		return jsonError(err)
	} else if t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	seen := make(map[string]bool)
	for {
		t, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		if t == json.Delim('}') {
			break
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("key %v is not a string", t)
		}
		if seen[key] {
			return fmt.Errorf("key %q occurs twice", key)
		}
		seen[key] = true
		dst := field(key)
		if dst == nil {
			return fmt.Errorf("unknown key %q", key)
		}
		if err := dec.Decode(dst); err != nil {
			return fmt.Errorf("key %q: %w", key, jsonError(err))
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON object")
	}
	return nil
}

// decodeExactly decodes a JSON object that has exactly the keys of fields.
func decodeExactly(data []byte, fields map[string]any) error {
	seen := 0
	err := decodeObject(data, func(key string) any {
		dst, ok := fields[key]
		if !ok {
			return nil
		}
		seen++
		return dst
	})
	if err == nil && seen != len(fields) {
		return fmt.Errorf("%d of %d keys are missing", len(fields)-seen, len(fields))
	}
	return err
}

// jsonError returns err, and io.ErrUnexpectedEOF for the end of the input.
func jsonError(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
