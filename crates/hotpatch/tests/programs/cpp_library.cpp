// A library's function gets its first static object, which is to be destroyed when the program ends: what that needs of the library, the
// compiler's own object brought along, hidden.
// build: g++ -O2 -shared -fPIC $FLAGS -o libtext.so cpp_library_side.cpp && g++ -O2 $FLAGS -o program cpp_library.cpp -L. -ltext -Wl,-rpath,$PWD
// old: 3
// new: 4 1
// new: 4 2
// old: 3
// new: 4 3
// switched: _Z4textB5cxx11v
#include "program.h"
#include <string>

std::string text();
void answer(char *out, size_t) {
    std::string said = text();
    // What the new function calls too, and libc chooses at the first call.
    memcpy(out, said.c_str(), said.size() + 1);
}
