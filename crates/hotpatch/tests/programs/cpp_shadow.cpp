// A field beside objects of a class, which is freed with the object.
// build: g++ -O2 $FLAGS -o program cpp_shadow.cpp
// old: 0 0
// new: 2 3
// new: 2 3
// switched: _ZN6Object5touchEv,_ZN6ObjectD2Ev
#include "program.h"
#ifdef FIXED
#include <outlive_shadow.h>
#endif

struct Object {
    int number;
    APART int touch();
    APART ~Object();
};
#ifdef FIXED
int Object::touch() {
    int *times = static_cast<int *>(outlive_shadow_make(this, 1, sizeof *times));
    return number + ++*times;
}
Object::~Object() { outlive_shadow_free_all(this); }
#else
int Object::touch() { return number; }
Object::~Object() { number = 0; }
#endif
void answer(char *out, size_t size) {
    Object object{};
    object.touch();
    int second = object.touch();
    snprintf(out, size, "%d %d", second, second ? object.touch() : 0);
}
