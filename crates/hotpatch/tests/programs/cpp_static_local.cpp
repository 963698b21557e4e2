// A static object of a function was constructed before: the new function has the same, and does not construct it again.
// build: g++ -O2 $FLAGS -o program cpp_static_local.cpp
// old: 1 made, 1 long
// new: 1 made, 3 long
// old: 1 made, 4 long
// new: 1 made, 6 long
// switched: _Z5countv
#include "program.h"
#include <string>

static int made;
struct Text { std::string text; APART Text() { made++; } };
APART int count() {
    static Text text;
#ifdef FIXED
    text.text += "ab";
#else
    text.text += "a";
#endif
    return text.text.size();
}
void answer(char *out, size_t size) { int length = count(); snprintf(out, size, "%d made, %d long", made, length); }
