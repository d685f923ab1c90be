/* The rows of COPY TO, in C. Its twin in Python is rows.py: the function has the same
   name and the same behaviour.

   The module is not linked with libpq. It must use the libpq that psycopg2 is linked
   with, from the system or from psycopg2's wheel, and finds it when it is imported.
*/

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <time.h>

/* The values of connection.poll() for the same states. */
enum { END = 0, READ = 1, YIELD = 2 };

/* The number of rows, a few microseconds, between two looks at the clock. */
#define ROWS_PER_LOOK 16

typedef struct {
    int (*get_copy_data)(void *, char **, int);
    int (*consume_input)(void *);
    void (*freemem)(void *);
} State;

static double
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Call write() with one row. Return 0, or -1 with an exception set. */
static int
write_row(PyObject *write, const char *codec, const char *row, int length)
{
    PyObject *data = codec ? PyUnicode_Decode(row, length, codec, "strict")
                           : PyBytes_FromStringAndSize(row, length);
    PyObject *result = data ? PyObject_CallOneArg(write, data) : NULL;

    Py_XDECREF(data);
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Set *row to the next row and return its length. Return 0 if it has not arrived, after
   one attempt to read more; a negative number after the last row or if the connection is
   lost. */
static int
next_row(State *state, void *pgconn, char **row)
{
    int length = state->get_copy_data(pgconn, row, 1);

    if (length == 0) {
        if (!state->consume_input(pgconn)) {
            return -1;
        }
        length = state->get_copy_data(pgconn, row, 1);
    }
    return length;
}

PyDoc_STRVAR(write_rows_doc,
"write_rows(pgconn, write, codec, seconds)\n--\n\n"
"Call write with each row that has arrived, for seconds at most. See rows.py.");

/* While write() runs, other greenlets may run, and this function's frame lies on the
   heap. The frame then refers only to the arguments, which the caller owns. The row is
   freed before an exception is checked. Nobody closes the connection meanwhile: psycopg2
   holds its lock during the query. */
static PyObject *
write_rows(PyObject *module, PyObject *args)
{
    State *state = PyModule_GetState(module);
    PyObject *address, *write;
    const char *codec;
    double seconds, end;
    void *pgconn;
    char *row;
    int length;

    if (!PyArg_ParseTuple(args, "OOzd:write_rows", &address, &write, &codec, &seconds)) {
        return NULL;
    }
    pgconn = PyLong_AsVoidPtr(address);
    if (!pgconn && PyErr_Occurred()) {
        return NULL;
    }
    end = monotonic() + seconds;
    for (unsigned count = 1; (length = next_row(state, pgconn, &row)) > 0; count++) {
        int status = write == Py_None ? 0 : write_row(write, codec, row, length);
        state->freemem(row);
        if (status < 0) {
            return NULL;
        }
        if (count % ROWS_PER_LOOK == 0 && monotonic() >= end) {
            return PyLong_FromLong(YIELD);
        }
    }
    return PyLong_FromLong(length ? END : READ);
}

/* Find libpq's functions through psycopg2's extension module, which depends on it.
   Return 0, or -1 with an exception set. The library stays loaded, as psycopg2 does. */
static int
find_libpq(State *state)
{
    PyObject *psycopg = PyImport_ImportModule("psycopg2._psycopg");
    PyObject *file = psycopg ? PyObject_GetAttrString(psycopg, "__file__") : NULL;
    const char *path = file ? PyUnicode_AsUTF8(file) : NULL;
    void *library = path ? dlopen(path, RTLD_NOW) : NULL;

    if (library) {
        *(void **)&state->get_copy_data = dlsym(library, "PQgetCopyData");
        *(void **)&state->consume_input = dlsym(library, "PQconsumeInput");
        *(void **)&state->freemem = dlsym(library, "PQfreemem");
    }
    if (path && !(library && state->get_copy_data && state->consume_input &&
                  state->freemem)) {
        PyErr_Format(PyExc_ImportError, "libpq's functions not found in %s", path);
    }
    Py_XDECREF(file);
    Py_XDECREF(psycopg);
    return PyErr_Occurred() ? -1 : 0;
}

static int
module_exec(PyObject *module)
{
    if (find_libpq(PyModule_GetState(module)) < 0 ||
        PyModule_AddIntMacro(module, END) < 0 ||
        PyModule_AddIntMacro(module, READ) < 0) {
        return -1;
    }
    return PyModule_AddIntMacro(module, YIELD);
}

static PyMethodDef methods[] = {
    {"write_rows", write_rows, METH_VARARGS, write_rows_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "psycogreen._interface._rows",
    .m_doc = "The rows of COPY TO, in C. Its twin in Python is rows.py.",
    .m_size = sizeof(State),
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__rows(void)
{
    return PyModuleDef_Init(&definition);
}
