package config

import "errors"

// ErrWrong is wrapped by every error about what the operator asked for, in a file,
// a flag or the environment: the same again fails the same.
var ErrWrong = errors.New("the configuration is wrong")

// Wrong marks an error as one of the configuration; its text stays.
func Wrong(err error) error {
	if err == nil || errors.Is(err, ErrWrong) {
		return err
	}
	return wrong{err}
}

type wrong struct{ error }

func (w wrong) Unwrap() error        { return w.error }
func (w wrong) Is(target error) bool { return target == ErrWrong }
