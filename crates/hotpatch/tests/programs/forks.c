// A program that forks when it is told `f`: the child goes on, and says what it says under its own number.
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 2; }
#else
__attribute__((noinline)) int value(void) { return 1; }
#endif

int main(void) {
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'f') {
            int pipe_ends[2];
            if (pipe(pipe_ends)) return 1;
            pid_t child = fork();
            if (!child) { read(pipe_ends[0], line, 1); _exit(value()); }
            printf("%d\n", child);
            fflush(stdout);
            if (!fgets(line, sizeof line, stdin)) return 0;
            write(pipe_ends[1], "x", 1);
            int status;
            waitpid(child, &status, 0);
            printf("%d\n", WEXITSTATUS(status));
        } else {
            printf("%d\n", value());
        }
        fflush(stdout);
    }
    return 0;
}
