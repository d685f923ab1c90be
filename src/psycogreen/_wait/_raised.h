/* The exception that is set, as one object: Python has functions for that since 3.12. */

#ifndef PSYCOGREEN_RAISED_H
#define PSYCOGREEN_RAISED_H

#include <Python.h>

/* Return the exception that is set, a new reference, and clear it; NULL without one. */
static inline PyObject *
take_raised(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value && traceback) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Set an exception, with its traceback. Steals the reference. */
static inline void
raise_again(PyObject *value)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(value);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(value)), value, PyException_GetTraceback(value));
#endif
}

#endif
