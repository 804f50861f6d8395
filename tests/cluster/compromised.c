/* Plays a worker that its image has taken over: does what the image says, a line at a time, in the attempt's work
   directory. In a line, @ stands for the attempt's folder and % for the conversion's name. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[512], conversion[512];

static void fill(const char *text, char *into, size_t room) {
    for (*into = 0; *text; text++) {
        char one[2] = {*text, 0};
        strncat(into, *text == '@' ? folder : *text == '%' ? conversion : one, room - strlen(into) - 1);
    }
}

static int obey(const char *word, const char *path, const char *text) {
    if (!strcmp(word, "exit")) exit(atoi(path));
    if (!strcmp(word, "wait")) return (int)sleep((unsigned)atoi(path));
    if (!strcmp(word, "mkdir")) return mkdir(path, 0770);
    if (!strcmp(word, "fifo")) return mkfifo(path, 0660);
    if (!strcmp(word, "link")) return symlink(text, path);
    int file = open(path, O_CREAT | O_WRONLY, 0660);
    if (!strcmp(word, "sparse")) return ftruncate(file, atoll(text)) | close(file);
    if (!strcmp(word, "write")) return write(file, text, strlen(text)) < 0 || close(file);
    return -1;
}

/* The claim's one image. */
static FILE *image(void) {
    DIR *claim = opendir("/claim");
    struct dirent *entry;
    while (claim && (entry = readdir(claim)))
        if (strstr(entry->d_name, ".img")) {
            char path[512];
            snprintf(path, sizeof path, "/claim/%s", entry->d_name);
            return fopen(path, "r");
        }
    return NULL;
}

int main(void) {
    char line[2048], path[2048], text[4096];
    snprintf(folder, sizeof folder, "%s", getenv("HYPER2KVM_FOLDER"));
    snprintf(conversion, sizeof conversion, "%s", folder);
    /* A pod is called as its conversion, its attempt, and five letters. */
    for (int cut = 0; cut < 2; cut++) *strrchr(conversion, '-') = 0;
    FILE *orders = image();
    if (!orders || chdir("/work") || mkdir(folder, 0770)) return 99;
    while (fgets(line, sizeof line, orders)) {
        line[strcspn(line, "\n")] = 0;
        char *word = strtok(line, " "), *where = strtok(NULL, " "), *rest = strtok(NULL, "");
        if (!word || !where) continue;
        fill(where, path, sizeof path);
        fill(rest ? rest : "", text, sizeof text);
        if (obey(word, path, text)) return 98;
    }
    return 0;
}
